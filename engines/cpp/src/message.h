// Makes text from outside safe to print: paths, manifest fields and other libraries' messages.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace r2mrf_internal {

// The text as one line of valid UTF-8: characters that control a terminal, end a line or turn the direction of writing become
// spaces, and bytes that are not UTF-8 question marks.
std::string one_line(std::string_view text);

// Prints one_line(text) and ends the line. Whatever a program shows of the world outside goes through here.
void print_line(std::FILE *to, std::string_view text);

// "1 thread", "2 threads".
std::string counted(std::uint64_t number, const std::string &noun);

}  // namespace r2mrf_internal
