def add(content, labels):
    return content
