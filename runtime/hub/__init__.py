"""The Hugging Face Hub: repositories, their files, and errors that say what to do.

huggingface_hub does the work: its cache, its tokens, its offline mode and its progress bars. It is imported when it is
first needed, so that `runtime` runs without it. This wing does not know artifacts.
"""
