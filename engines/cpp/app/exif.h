// The EXIF orientation of a photograph.
#pragma once

#include <cstddef>
#include <cstdint>

// The orientation of a JPEG (APP1) or PNG (eXIf) file, 1 to 8 as in EXIF 2.32 and TIFF 6.0. It is 1, upright, if the file
// does not say, is damaged or has another format.
unsigned exif_orientation(const std::uint8_t *file, std::size_t size);
