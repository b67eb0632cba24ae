from hypothesis import settings

settings.register_profile("train", deadline=None, derandomize=True, database=None)
settings.load_profile("train")
