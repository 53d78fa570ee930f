"""What a policy decides: it is checked, asked, and its actions are admitted or refused.

Nothing here knows a network: an answer is judged by architectures alone.
"""
