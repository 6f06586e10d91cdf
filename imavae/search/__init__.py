"""A study: the space of points, the trainable that Ray runs, and the driver that joins Optuna, Ray and the tracker."""
