// How a camera was held: the one tag of EXIF that says which way up a photograph's pixels are.
#pragma once

#include <cstddef>
#include <cstdint>

// Orientation of a JPEG (APP1) or PNG (eXIf) file's content, 1 to 8 as in EXIF 2.32 and TIFF 6.0; 1, upright, where it says
// none, and for any other file or a damaged one.
unsigned exif_orientation(const std::uint8_t *file, std::size_t size);
