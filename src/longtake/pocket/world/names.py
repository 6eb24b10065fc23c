"""What there is in the pocket world, by name. The order of every tuple is the order of the numbers in a scene.

Imports nothing heavy: prompts are checked against these names before torch is loaded.
"""

from __future__ import annotations

FPS = 16
SIZE = 128  # pixels, the size the world is made for
GROUND = 0.62  # where feet stand: y downwards, the picture's height is from -1 to 1
TRAVEL = 1.25  # how far the camera goes to either side, in the same units
STRIDE = 0.32  # ground covered in one walk cycle, in the same units

SHAPES = ("ball", "box", "star", "fish", "bird", "cat", "robot", "balloon", "car", "butterfly")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
PATTERNS = ("plain", "striped", "spotted", "checked")
SIZES = ("small", "big")
PLACES = ("meadow", "forest", "beach", "desert", "city", "sea", "room")
LIGHTS = ("day", "dusk", "night", "turning")
CAMERAS = ("still", "pan")
MOTIONS = ("rolls", "bounces", "circles", "swims", "flies", "walks", "swings", "leaves", "hides", "orbits")
ACCESSORIES = ("none", "hat", "scarf")  # never told
EYES = ("round", "sleepy")  # never told
# what can stand in each of a place's four spots, never told
LANDMARKS = {
    "meadow": ("round tree", "barn", "haystack", "windmill"),
    "forest": ("tall pine", "cabin", "snowman", "boulder"),
    "beach": ("palm", "parasol", "sandcastle", "sailing boat"),
    "desert": ("cactus", "pyramid", "mesa", "tent"),
    "city": ("tower", "shop", "clock tower", "street tree"),
    "sea": ("coral", "weed", "arch", "chest"),
    "room": ("window", "picture", "bookshelf", "floor lamp"),
}

# Frames in one period, in the order of MOTIONS: whole chunks of 12 frames, and whole cycles of legs, wings and fins.
PERIODS = (48, 24, 48, 48, 48, 96, 24, 192, 96, 48)
# Motions that a three-second clip shows whole; the others are excursions, of which a clip shows a part.
SHORT = ("rolls", "bounces", "circles", "swims", "flies", "swings", "orbits")
LONG = ("walks", "leaves", "hides")
PAN_PERIOD = 288  # 18 seconds
LIGHT_PERIOD = 576  # 36 seconds from day to night and back

# What the sampler usually gives each shape; captions and scenes may combine anything with anything.
SUITED = {
    "ball": ("rolls", "bounces", "circles", "swings", "leaves", "hides"),
    "box": ("bounces", "circles", "swings", "leaves", "hides"),
    "star": ("bounces", "circles", "swings", "leaves", "hides"),
    "fish": ("swims", "circles", "leaves", "hides"),
    "bird": ("flies", "walks", "circles", "leaves", "hides"),
    "cat": ("walks", "bounces", "leaves", "hides"),
    "robot": ("walks", "bounces", "swings", "leaves", "hides"),
    "balloon": ("flies", "swings", "circles", "leaves", "hides"),
    "car": ("rolls", "bounces", "leaves", "hides"),
    "butterfly": ("flies", "circles", "leaves", "hides"),
}
HOVERS = ("star", "fish", "bird", "balloon", "butterfly")  # above the ground where the motion leaves it open
DIRECTED = ("fish", "bird", "cat", "car")  # turn to where they go
