from .equivalent import DrawnRidge as DrawnRidge
from .equivalent import Population as Population
from .equivalent import solve_drawn_ridge as solve_drawn_ridge
