"""The replay server's room: storage, sampling distributions, rate limiter and the Ray shell."""
