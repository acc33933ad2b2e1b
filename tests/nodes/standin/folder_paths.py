import os

models_dir = ""
folder_names_and_paths = {}


def add_model_folder_path(folder_name, full_folder_path, is_default=False):
    if folder_name not in folder_names_and_paths:
        folder_names_and_paths[folder_name] = ([full_folder_path], set())
        return
    paths = folder_names_and_paths[folder_name][0]
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name):
    return folder_names_and_paths[folder_name][0][:]


def get_filename_list(folder_name):
    paths, extensions = folder_names_and_paths[folder_name]
    found = set()
    for path in paths:
        for folder, _, files in os.walk(path):
            found |= {
                os.path.relpath(os.path.join(folder, file), path)
                for file in files
                if os.path.splitext(file)[1] in extensions
            }
    return sorted(found)


def get_full_path(folder_name, filename):
    filename = os.path.relpath(os.path.join("/", filename), "/")
    for path in get_folder_paths(folder_name):
        full = os.path.join(path, filename)
        if os.path.isfile(full):
            return full
    return None
