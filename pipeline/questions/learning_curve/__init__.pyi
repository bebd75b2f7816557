from .figure import draw_learning_curve as draw_learning_curve
from .figure import draw_learning_panel as draw_learning_panel
from .figure import draw_noise_levels as draw_noise_levels
from .table import compare_learning as compare_learning
from .table import summarise_learning as summarise_learning
