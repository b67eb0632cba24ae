"""OpenAI-compatible server: python serve.py model=PATH [port=8000 key=value ...]; --help lists every key."""

from serve.command import main

if __name__ == "__main__":
    main("python serve.py model=PATH [port=8000 key=value ...]")
