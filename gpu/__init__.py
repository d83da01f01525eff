"""Computing on graphics cards, through CuPy; imported only where one is asked for or may be."""
