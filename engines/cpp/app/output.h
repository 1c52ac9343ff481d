// Writes pictures into one folder: whole or not at all, and nowhere else.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

// Why a file could not be written, in words.
std::string why_not_written(int error);

// Writes `folder`/`name` as PNG and makes the folder if it is missing. channels: 1 or 3. A regular file of that name is
// replaced; what is not a regular file, such as a symbolic link or a FIFO, is refused. Throws FileError and leaves nothing
// behind if the file cannot be written, or if its name leads out of the folder.
void write_png(const std::filesystem::path &folder, const std::string &name, std::uint32_t width, std::uint32_t height,
               int channels, const std::uint8_t *pixels);
