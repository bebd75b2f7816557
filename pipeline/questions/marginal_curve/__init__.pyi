from .figure import draw_marginal_noise as draw_marginal_noise
