// Which photographs to read, and what to call their results.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

// The photographs that an argument stands for: itself, or the images in the folder that it names, sorted and without those in
// subfolders. Throws FileError if the folder cannot be read or has no image.
std::vector<std::filesystem::path> photographs_in(const std::filesystem::path &given);

// A name for the results of each source, and for no other: its stem, or its file name, or as many of its folders before that
// as are needed. Case is ignored, as some file systems do. With `longest_suffix` more bytes, a file may have that name: longer
// names are cut and get a digest of the source's path. The same as in r2mrf_deploy/predict.py.
std::vector<std::string> names_of(const std::vector<std::filesystem::path> &sources, std::size_t longest_suffix);
