from pathlib import Path

models_dir = ""
temp_directory = ""
user_directory = ""
folder_names_and_paths = {}


def add_model_folder_path(folder_name, full_folder_path, is_default=False):
    if folder_name not in folder_names_and_paths:
        folder_names_and_paths[folder_name] = ([full_folder_path], set())
        return
    paths = folder_names_and_paths[folder_name][0]
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_temp_directory():
    return temp_directory


def get_user_directory():
    return user_directory


def get_folder_paths(folder_name):
    return folder_names_and_paths[folder_name][0][:]


def get_filename_list(folder_name):
    paths, extensions = folder_names_and_paths[folder_name]
    files = [(file, path) for path in paths for file in Path(path).rglob("*") if file.suffix in extensions]
    return sorted({str(file.relative_to(path)) for file, path in files})


def get_full_path(folder_name, filename):
    for path in get_folder_paths(folder_name):
        full = Path(path) / filename
        if full.is_file():
            return str(full)
    return None
