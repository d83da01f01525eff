"""Computing on graphics cards with CuPy; imported only if a card may be used."""
