"""What differs between model families: a `Family`, one file each. Nothing here imports torch or transformers, so that
data/ may read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Turn = tuple[str, str] | Mapping[str, str]
"""A turn of a conversation: (role, content), or {"role": ..., "content": ...}."""

CONFIG_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Of config.json: what the configs of transformers' Llama and Qwen classes share."""

WINDOW_KEY = "routing_block_size"
"""Of config.json as saved here: the tokens that the network runs together, where blocks have become larger."""

PLACEHOLDER = "<image>"
"""Where a picture stands in a text."""
BOXED = "You need to put your final answer in \\boxed{}. This is the problem:\n{{problem}}"
STDIO = (
    "This is the problem:\n{{problem}}\nYou should put your code in ```python ```. "
    "Use input() to read input and print() to produce output in your script. "
)


@dataclass(frozen=True)
class ChatFormat:
    """How a family writes a conversation, and its instructions where they are its own (dLLM-RL's to the character).

    opening: what a conversation begins with. turn: header and content of a turn, with a %s for role and content;
    picture_turn: of one with pictures (`<image>`), None = the same; trims: without the content's outer whitespace.
    roles: (role, its name in a turn) where they differ.
    end_of_turn: the token that ends a turn.
    after_turn: what stands between two turns. assistant: its header; opened_response: what follows the one under which
    a response is to be written. thinking_assistant: the header that opens a thought too, None where the family has
    none. system: the system turn of a conversation without one; after_system: what follows the content of one that is
    given.
    math, thinking_math, stdio: the user's turn of a math task (answered with a thought) and of a program that reads
    stdin, with {{problem}} where the question goes.
    """

    turn: str
    end_of_turn: str
    assistant: str
    opened_response: str = ""
    opening: str = ""
    trims: bool = False
    roles: tuple[tuple[str, str], ...] = ()
    after_turn: str = ""
    picture_turn: str | None = None
    thinking_assistant: str | None = None
    system: str | None = None
    after_system: str = ""
    math: str = BOXED
    thinking_math: str = BOXED
    stdio: str = STDIO

    def conversation(self, turns: Sequence[Turn], *, start_with_think: bool = False) -> str:
        """The turns as text and the assistant's open header; the family's system turn first if none is given.
        ValueError for start_with_think where the family has no such header."""
        pairs = [(turn["role"], turn["content"]) if isinstance(turn, Mapping) else turn for turn in turns]
        if pairs and pairs[0][0] == "system":
            pairs[0] = ("system", pairs[0][1] + self.after_system)
        elif self.system is not None:
            pairs = [("system", self.system), *pairs]
        text = self.opening + "".join(self._written(role, content) for role, content in pairs)
        if not start_with_think:
            return text + self.assistant + self.opened_response
        if self.thinking_assistant is None:
            raise ValueError(
                "start_with_think is true, but this family has no prompt that opens a thought: "
                "set rollout.start_with_think=false or give a template of your own"
            )
        return text + self.thinking_assistant

    def _written(self, role: str, content: str) -> str:
        content = content.strip() if self.trims else content
        turn = self.picture_turn if self.picture_turn is not None and PLACEHOLDER in content else self.turn
        name = dict(self.roles).get(role, role)
        opened = self.assistant + content if role == "assistant" else turn % (name, content)
        return opened + self.end_of_turn + self.after_turn


CHATML = ChatFormat(
    turn="<|im_start|>%s\n%s",
    end_of_turn="<|im_end|>",
    after_turn="\n",
    assistant="<|im_start|>assistant\n",
)


@dataclass(frozen=True)
class Piece:
    """Where a checkpoint keeps one part of a network's weight.

    Rows [start, stop) of the checkpoint's tensor `name` (None: all of it) are the part `at` of the weight (an index;
    () = all of it), as part = stored * scale + shift.
    """

    name: str
    rows: tuple[int, int] | None = None
    at: tuple[int | slice, ...] = ()
    scale: float = 1.0
    shift: float = 0.0


Pieces = Callable[[Mapping[str, Any], str, Sequence[int]], list[Piece]]


def same_name(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    """A checkpoint with transformers' own names."""
    return [Piece(weight)]


def expert_pieces(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    """A checkpoint with transformers' own names but one tensor an expert and projection: experts.gate_up_proj
    [E, 2 * I, D] holds gate_proj [I, D] and up_proj [I, D] of each expert, experts.down_proj [E, D, I] their
    down_proj."""
    experts, _, projection = weight.rpartition(".experts.")
    if projection == "down_proj":
        return [Piece(f"{experts}.experts.{e}.down_proj.weight", at=(e,)) for e in range(shape[0])]
    if projection == "gate_up_proj":
        half = shape[1] // 2
        parts = {"gate_proj": slice(0, half), "up_proj": slice(half, 2 * half)}
        return [
            Piece(f"{experts}.experts.{e}.{name}.weight", at=(e, rows))
            for e in range(shape[0])
            for name, rows in parts.items()
        ]
    return [Piece(weight)]


@dataclass(frozen=True)
class Decoding:
    """How responses of a family are unmasked.

    schedule: how the steps of a block divide its positions (a name of `sample.unmask.SCHEDULES`).
    opens_with_first: the first call of a block decides its first position and no other.
    dynamic_at_least_one: low_confidence_dynamic decides at least one position a step, not the step's share.
    threshold_passes: a score equal to the threshold passes.
    pads_end: a block of pads alone ends the response; what is right of it becomes pads.
    stop_narrows: once a stop id stands in a block, only positions before the first one are decided.
    block_size: for full attention, where blocks are only a schedule and no checkpoint names them.
    """

    schedule: Literal["even", "timesteps"] = "even"
    opens_with_first: bool = False
    dynamic_at_least_one: bool = False
    threshold_passes: bool = False
    pads_end: bool = False
    stop_narrows: bool = False
    block_size: int | None = None


@dataclass(frozen=True)
class PictureSizes:
    """tokens: the most positions of a picture in a prompt. seen: positions that the tower runs for it, on this many
    layers of these sizes. cut: how pictures are cut; where it is equal, a picture has equally many positions."""

    tokens: int
    seen: int
    layers: int
    hidden: int
    inner: int
    cut: object


@dataclass(frozen=True)
class Family:
    """One architecture: how its checkpoints are laid out, how its outputs are read and how its prompts are written.

    name: the canonical `model_base`; aliases: other names of the same architecture (TraDo is SDAR with other weights).
    model_types: values of config.json's `model_type` that mean this family.
    attention: "block" (clean past, bidirectional inside a block) or "full" (bidirectional everywhere). noise: what
    stands where nothing is decided: the mask token, or ("uniform") random tokens of a canvas, a block that begins right
    after the prompt and is denoised whole (`models.canvas`).
    logit_shift: the prediction of token i is read at position i - 1 (full attention only).
    model_class: name of transformers' class; config_arguments: those of its config, from the checkpoint's config.json
    (ValueError on flags that the class cannot express). adapt: changes of the network's modules that no config of the
    class expresses. beside: name of a JSON file beside config.json (or its own), and (its content, shapes of the stored
    weights by name) -> more entries of config.json, for what a checkpoint does not say there.
    pieces: config.json, a weight's name and shape -> where the checkpoint keeps it, in and out.
    chat: how a conversation is written, None for a family that has no format.
    mask_token, mask_id: used when neither config.json nor the tokenizer names a mask. tokenizer_class: name of
    transformers' class that replaces the remote code that the tokenizer's files ask for.
    text_vocab_size: config.json -> ids from here on are never sampled; None = those that the tokenizer has no name for.
    default_block_size: of a checkpoint whose config.json names none. decoding: how responses are unmasked.
    whole_blocks: config.json -> tokens that the network can only run together, None = any number: blocks of decoding
    and training are a multiple of it.
    carries_vision: the network has a vision tower that is kept and not used.
    delete_insert_ids: config.json -> ids of the tokens DELETE and INSERT, which edits choose and no text holds; None =
    it has none.
    vision: a loaded model, and the folder or hub name of an image tokenizer (None = none was given) -> how it takes
    pictures (`models.vision.seeing.Vision`); None for a family that takes none. trains_vision: what it sees with is
    part of the checkpoint and may be trained. picture_sizes: config.json -> sizes of its largest picture. picture_fits:
    names of the ways to bring a picture to the model's size, as its `Vision.fits`.
    """

    name: str
    model_types: tuple[str, ...]
    attention: Literal["block", "full"]
    model_class: str
    config_arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    adapt: Callable[[Any, Mapping[str, Any]], None] | None = None
    beside: tuple[str, Callable[[Mapping[str, Any], Mapping[str, Sequence[int]]], dict[str, Any]]] | None = None
    pieces: Pieces = same_name
    logit_shift: bool = False
    aliases: tuple[str, ...] = ()
    chat: ChatFormat | None = None
    mask_token: str | None = None
    mask_id: int | None = None
    tokenizer_class: str | None = None
    text_vocab_size: Callable[[Mapping[str, Any]], int] | None = None
    default_block_size: int = 1
    whole_blocks: Callable[[Mapping[str, Any]], int | None] | None = None
    noise: Literal["mask", "uniform"] = "mask"
    carries_vision: bool = False
    delete_insert_ids: Callable[[Mapping[str, Any]], tuple[int, int] | None] | None = None
    decoding: Decoding = Decoding()
    vision: Callable[[Any, str | None], Any] | None = None
    trains_vision: bool = False
    picture_sizes: Callable[[Mapping[str, Any]], PictureSizes] | None = None
    picture_fits: Callable[[], tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.attention == "block" and self.logit_shift:
            raise ValueError(
                f"family {self.name!r} has attention='block' and logit_shift=True: the exact cache and packed rows "
                "read token i at position i, so sampling and training would disagree. Use attention='full'."
            )
        if self.attention == "block" and self.vision is not None:
            raise ValueError(
                f"family {self.name!r} has attention='block' and vision: the exact cache reads tokens alone. Use "
                "attention='full'."
            )

    @property
    def end_of_turn(self) -> str | None:
        """The chat's token that ends a response."""
        return self.chat.end_of_turn if self.chat is not None else None

    def decoding_block_size(self, requested: int | None, own: int, response_tokens: int) -> int:
        """Tokens of a block in decoding: those `requested`, else the model's `own`; under full attention, where blocks
        are a schedule of the response, else the schedule's, and no more than the response has."""
        if self.attention == "block":
            return requested or own
        return min(requested or self.decoding.block_size or own, response_tokens)


def pick(raw_config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The entries of config.json that a transformers config takes; what is absent keeps its default."""
    return {name: raw_config[name] for name in names if name in raw_config}


def refuse_sliding_window(raw_config: Mapping[str, Any]) -> None:
    if raw_config.get("use_sliding_window"):
        raise ValueError("config.json has use_sliding_window: true; attention over a window is not supported.")
