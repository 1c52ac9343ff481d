// What goes wrong with a file.
#pragma once

#include <stdexcept>

// A file cannot be read or written. The message is one line that says what to do.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
