from .table import other_labels as other_labels
from .table import score_label as score_label
from .table import summarise_labels as summarise_labels
from .table import tabulate_labels as tabulate_labels
