def get_optional_float(mapping, key, *, where):
    return None if mapping.get(key) is None else float(mapping[key])
