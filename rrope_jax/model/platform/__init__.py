"""The operations that some processors compute faster in another form.

`operations` decides, once, which form a program takes; the rest of the model asks for none.
"""
