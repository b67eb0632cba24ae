"""LaTeX's commands by what reward.math.latex does with them."""


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


WITHOUT_MEANING = names(
    "displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits left right middle big Big bigg Bigg bigl "
    "bigr Bigl Bigr biggl biggr Biggl Biggr bigm hfill nonumber notag strut mathstrut normalsize large Large LARGE "
    "huge Huge small tiny bf it tt cal bfseries itshape boldmath noindent centering allowbreak relax protect null "
    "checkmark blacksquare qed qedsymbol"
)
UPRIGHT = names("rm sf rmfamily sffamily upshape")  # to the end of the group
TEXT = names(
    "text textrm textit textnormal textsf texttt textsc textup mbox hbox mathrm mathit mathsf mathtt mathnormal "
    "operatorname operatorname*"
)
UNWRAPPED = names(
    "boxed fbox framebox underline uline mathbf boldsymbol bm pmb emph textbf mathop mathord mathbin mathrel "
    "ensuremath smash substack"
)
DROPPED = names("phantom hphantom vphantom hspace hspace* vspace label tag color mspace")
UNIT_PREFIXES = names("nano micro milli centi deci kilo mega giga")
LAST_KEPT = {
    "textcolor": 2, "colorbox": 2, "href": 2, "style": 2, "class": 2, "cssId": 2, "fcolorbox": 3, "stackrel": 2,
    "overset": 2, "underset": 2,
}  # fmt: skip
TWO_ARGUMENTS = {
    name: command
    for command, names in {
        "frac": "frac dfrac tfrac cfrac sfrac nicefrac xfrac flatfrac",
        "binom": "binom dbinom tbinom",
    }.items()
    for name in names.split()
}
FUNCTIONS = names(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh arcsinh arccosh arctanh arsinh "
    "arcosh artanh log ln exp gcd lcm max min det"
)
SYNONYMS = {
    name: meant
    for meant, names in {
        r"\le ": "le leq leqslant leqq",
        r"\ge ": "ge geq geqslant geqq",
        "<": "lt",
        ">": "gt",
        r"\neq ": "ne neq",
        r"\{": "lbrace",
        r"\}": "rbrace",
        "[": "lbrack",
        "]": "rbrack",
        "(": "langle lparen",
        ")": "rangle rparen",
        "|": "lvert rvert vert",
        r"\|": "lVert rVert Vert",
        r"\ldots ": "ldots dots cdots dotsc dotsb dotsm dotso",
        r"\emptyset ": "varnothing emptyset",
        r"\infty ": "infin infty",
        r"\cdot ": "cdot cdotp ast centerdot bullet",
        r"\Rightarrow ": "to rightarrow longrightarrow Rightarrow Longrightarrow implies therefore",
        r"\land ": "land wedge",
        r"\lor ": "lor vee",
        r"^\circ ": "degree textdegree",
        r"\setminus ": "setminus smallsetminus backslash",
        r"\approx ": "approx approxeq simeq doteq thickapprox",
        r"\pm ": "pm textpm",
        r"\pi ": "pi uppi",
        r"\tan ": "tg",
        r"\cot ": "ctg",
        r"\arctan ": "arctg",
        r"\log ": "lg",
        " ": "quad qquad thinspace enspace space nobreakspace",
        "-": "textminus",
        "/": "slash",
        ":": "colon",
        "i": "imath",
        "j": "jmath",
        "€": "euro texteuro",
        "£": "pounds textsterling",
        "¥": "yen textyen",
        "₹": "rupee",
        "¢": "cent textcent",
        r"\$": "textdollar mathdollar",
        r"\%": "percent",
    }.items()
    for name in names.split()
}
ESCAPES = {",": " ", ";": " ", ":": " ", "!": "", " ": " ", ">": " ", "\n": " ", "\t": " ", "(": "", ")": ""}
IN_TEXT = {**ESCAPES, "%": "%", "$": "$", "&": "&", "#": "#", "_": "_", "quad": " ", "qquad": " ", "cdot": "·",
            "times": "·", "circ": "°", "degree": "°", "textdegree": "°", "Omega": "Ω", "mu": "μ", "euro": "€",
            "pounds": "£", "left": "", "right": "", "prime": "'"}  # fmt: skip
ROWS = names(
    "aligned align align* alignedat gathered gather gather* split cases dcases rcases eqnarray eqnarray* equation "
    "equation* displaymath math multline multline*"
)
