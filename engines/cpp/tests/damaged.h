// Damages inputs for the fuzz tests.
#pragma once

#include <random>
#include <string>

// The text with up to four places changed, removed, repeated or stuffed with brackets and digits.
inline std::string damaged(std::string text, std::mt19937 &random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  for (std::size_t n = 1 + below(4); n > 0 && !text.empty(); --n) {
    const std::size_t at = below(text.size());
    switch (below(4)) {
      case 0: text[at] = static_cast<char>(below(256)); break;
      case 1: text.erase(at, 1 + below(8)); break;
      case 2: text.insert(at, text.substr(below(text.size()), 1 + below(32))); break;
      default: text.insert(at, 1 + below(300), "[{\"9-"[below(5)]); break;
    }
  }
  return text;
}
