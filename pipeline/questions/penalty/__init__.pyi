from .figure import draw_alpha_search as draw_alpha_search
from .section import count_choices as count_choices
from .section import describe_search as describe_search
from .table import search_warnings as search_warnings
from .table import summarise_edges as summarise_edges
from .table import tabulate_search as tabulate_search
