"""Colors of all figures."""

INK = "#333333"

# Hues of the Okabe-Ito palette, darkened so that thin lines and tints stand out on white.
PALETTE = (
    "#4a4a4a", "#0060a0", "#c04a00", "#00705a", "#a8407c", "#7a6a00", "#5b3fa0", "#8a1c1c",
)  # fmt: skip
GREY, BLUE, VERMILLION, GREEN, PURPLE, OLIVE, VIOLET, RED = PALETTE
