def get_executing_context():
    return None
