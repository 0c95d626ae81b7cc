def row_of(ran): return [ran.kernel]
