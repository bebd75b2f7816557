from .ridge import BinnedRidge as BinnedRidge
from .ridge import GramRidge as GramRidge
