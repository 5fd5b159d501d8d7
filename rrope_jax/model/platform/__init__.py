"""Operations that have a faster form on some processors.

Only `operations` decides which form to use; the rest of the model does not depend on the platform.
"""
