/* Runs the artifacts of r2mrf-deploy: takes the bytes of an image and gives a map of what is in focus.
 *
 * An artifact is a model file and its manifest, such as x.onnx and x.onnx.json. Every function that can fail returns a
 * status; r2mrf_last_error() says what went wrong. No function throws.
 *
 * Threads: any number of threads may run an engine at once. The caller must not close it while a thread still runs it. Each
 * thread has its own r2mrf_last_error() and r2mrf_last_times(). A plan runs on the CUDA device that was current
 * (cudaSetDevice) in the thread that opened it, whichever thread runs it; no thread's current device changes. */
#ifndef R2MRF_H
#define R2MRF_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define R2MRF_API
#else
#define R2MRF_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define R2MRF_NOEXCEPT noexcept
extern "C" {
#else
#define R2MRF_NOEXCEPT
#endif

/* These values never change and are never reused. New ones may be added. */
typedef int32_t r2mrf_status;
#define R2MRF_OK 0
#define R2MRF_USAGE 1       /* an error in the calling program: a null pointer, an unknown colour */
#define R2MRF_INPUT 2       /* a size or stride that no image has, a file that does not exist */
#define R2MRF_ARTIFACT 3    /* the artifact is damaged, differs from its manifest, or computes values that are not finite */
#define R2MRF_UNAVAILABLE 4 /* this build or this machine lacks what the artifact needs */
#define R2MRF_INTERNAL 5    /* out of memory, or an error in this library */

typedef int32_t r2mrf_color;
#define R2MRF_RGB 0
#define R2MRF_BGR 1

/* An opened artifact. */
typedef struct r2mrf_engine r2mrf_engine;

/* The library's version, "major.minor.patch". Never null. Valid as long as the program runs. */
R2MRF_API const char *r2mrf_version(void) R2MRF_NOEXCEPT;

/* The backends in this build, separated by spaces, such as "openvino tensorrt"; "" if there are none. Valid as long as the
 * program runs. */
R2MRF_API const char *r2mrf_backends(void) R2MRF_NOEXCEPT;

/* Why the calling thread's last call failed, as one line of UTF-8; "" if it succeeded. Valid until the thread's next
 * call. */
R2MRF_API const char *r2mrf_last_error(void) R2MRF_NOEXCEPT;

/* Opens an artifact. Its suffix selects the backend: OpenVINO on the CPU for .onnx and .xml, TensorRT for .plan.
 *
 * artifact: path of the model file. A manifest beside it must match it by SHA-256; without one, an .onnx or .xml file must
 *   have its contract inside.
 * threads: CPU threads for one inference; 0 lets the backend choose. It must be 0 for a plan, which runs on the GPU.
 * engine: receives the engine, or null after a failure. */
R2MRF_API r2mrf_status r2mrf_open(const char *artifact, uint32_t threads, r2mrf_engine **engine) R2MRF_NOEXCEPT;

/* Closes an engine. Null is allowed. */
R2MRF_API void r2mrf_close(r2mrf_engine *engine) R2MRF_NOEXCEPT;

/* What runs the engine, such as "OpenVINO 2026.4.1, CPU, 8 threads, f32". Valid until the engine is closed. Null if the
 * engine is null. */
R2MRF_API const char *r2mrf_device(const r2mrf_engine *engine) R2MRF_NOEXCEPT;

/* The network's height and width, into which images are fitted; 0 and 0 if the artifact leaves them free. The artifact says
 * whether an image of another aspect is stretched, or keeps its aspect and is filled up with its own pixels, mirrored. */
R2MRF_API r2mrf_status r2mrf_input_size(const r2mrf_engine *engine, uint32_t *height, uint32_t *width) R2MRF_NOEXCEPT;

/* Computes the map of an image, at the image's size.
 *
 * pixels: height rows of width pixels, 3 bytes each in the order given by color. Rows begin stride bytes apart.
 * map: height rows of width floats in [0, 1], 1 = in focus. Rows begin map_stride BYTES apart. The map must not overlap the
 *   image. After a failure its content is undefined. */
R2MRF_API r2mrf_status r2mrf_run_f32(r2mrf_engine *engine, const uint8_t *pixels, uint32_t width, uint32_t height,
                                     size_t stride, r2mrf_color color, float *map, size_t map_stride) R2MRF_NOEXCEPT;

/* The same as bytes: 255 times the value, rounded to the nearest, ties to even. */
R2MRF_API r2mrf_status r2mrf_run_u8(r2mrf_engine *engine, const uint8_t *pixels, uint32_t width, uint32_t height,
                                    size_t stride, r2mrf_color color, uint8_t *map, size_t map_stride) R2MRF_NOEXCEPT;

/* How long the parts of the calling thread's last successful run took, in milliseconds. This struct never grows: further
 * figures would get a function of their own. */
typedef struct r2mrf_times {
  double prepare; /* resizing and normalising the image */
  double enqueue; /* the host's part of starting the inference */
  double h2d;     /* copying to the device; 0 on a CPU */
  double compute; /* the inference */
  double d2h;     /* copying from the device; 0 on a CPU */
  double finish;  /* resizing the map */
} r2mrf_times;

R2MRF_API r2mrf_status r2mrf_last_times(r2mrf_times *times) R2MRF_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
