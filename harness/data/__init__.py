"""Data sets: what one must hold (`catalog`), folders to samples (`layouts`, `surfaces`), files to pixels (`images`)."""
