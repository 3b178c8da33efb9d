// Stands in for the CUDA driver, and for the runtime that TileLang's own host code is written for: notes every call.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
static std::string notes;
static int failing_call = 0, calls = 0, status_of_failure = 0;
static unsigned sizes_of_parameters[256];

static void hex(const void* bytes, size_t n) {
  char text[3];
  for (size_t i = 0; i < n; ++i) {
    snprintf(text, sizeof text, "%02x", static_cast<const unsigned char*>(bytes)[i]);
    notes += text;
  }
  notes += ' ';
}

static void note(const char* name) { notes += std::string(notes.empty() ? "" : "\n") + name + ' '; }

// A tensor map of the stand-in is a sum over its arguments, so that a launch shows which it was given.
static void encoded(void* map, const std::string& line) {
  uint64_t sum = 14695981039346656037ull;
  for (unsigned char c : line) sum = (sum ^ c) * 1099511628211ull;
  for (int i = 0; i < 16; ++i) memcpy(static_cast<char*>(map) + 8 * i, &sum, 8);
}

extern "C" {
const char* noted() { return notes.c_str(); }
void start(int fails_at, int status) { notes.clear(); calls = 0; failing_call = fails_at; status_of_failure = status; }
void parameter_sizes(const unsigned* sizes, int n) { memcpy(sizes_of_parameters, sizes, 4 * n); sizes_of_parameters[n] = 0; }

static int ends() { return ++calls == failing_call ? status_of_failure : 0; }

int cuGetErrorName(int status, const char** text) { *text = "CUDA_ERROR_OF_A_TEST"; return status == 999 ? 1 : 0; }
int cuGetErrorString(int status, const char** text) { *text = "words of the driver"; return status == 999 ? 1 : 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 10 + ordinal; return ends(); }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = reinterpret_cast<void*>(100 + device); return ends(); }
int cuCtxPushCurrent_v2(void* context) { note("push"); hex(&context, 8); return ends(); }
int cuCtxPopCurrent_v2(void** context) { *context = nullptr; note("pop"); return ends(); }
int cuModuleLoadData(void** module, const void* image) {
  *module = reinterpret_cast<void*>(7); note("load"); hex(image, 4); return ends();
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = reinterpret_cast<void*>(8); note("function"); hex(&module, 8); notes += name; return ends();
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  note("attribute"); hex(&function, 8); notes += std::to_string(attribute) + ' ' + std::to_string(value); return ends();
}
int cuTensorMapEncodeTiled(void* map, int type, cuuint32_t rank, void* address, const cuuint64_t* sizes,
                           const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, int interleave,
                           int swizzle, int promotion, int fill) {
  if (reinterpret_cast<uintptr_t>(map) % 64) return 1;
  std::string before;
  before.swap(notes);
  note("encode");
  hex(&type, 4); hex(&rank, 4); hex(&address, 8); hex(sizes, 8 * rank); hex(strides, 8 * (rank - 1));
  hex(box, 4 * rank); hex(steps, 4 * rank);
  hex(&interleave, 4); hex(&swizzle, 4); hex(&promotion, 4); hex(&fill, 4);
  encoded(map, notes);
  notes = before + (before.empty() ? "" : "\n") + notes;
  return ends();
}
static void launched(const unsigned* shape, void* stream) {
  note("launch");
  hex(shape, 7 * 4);
  hex(&stream, 8);
}
int cuLaunchKernel(void*, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** parameters, void** extra) {
  if (extra) return 1;
  const unsigned shape[] = {gx, gy, gz, bx, by, bz, shared};
  launched(shape, stream);
  for (int i = 0; sizes_of_parameters[i]; ++i) hex(parameters[i], sizes_of_parameters[i]);
  return ends();
}
}

// What TileLang's host code names.
struct alignas(64) CUtensorMap { char bytes[128]; };
typedef int CUtensorMapDataType, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion;
typedef int CUtensorMapFloatOOBfill, CUresult, cudaError_t;
typedef void* cudaStream_t;
typedef uint16_t half_t, bfloat16_t;
struct dim3 { unsigned x, y, z; dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {} };
struct cudaLaunchAttribute { int id; struct { int programmaticStreamSerializationAllowed; } val; };
struct cudaLaunchConfig_t {
  cudaLaunchAttribute* attrs; int numAttrs; cudaStream_t stream; dim3 gridDim, blockDim; unsigned dynamicSmemBytes;
};
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(name) name
#define CUDA_SUCCESS 0
#define cudaSuccess 0
#define cudaStreamDefault nullptr
#define cudaLaunchAttributeProgrammaticStreamSerialization 6
#define cudaFuncAttributeMaxDynamicSharedMemorySize 8
#define TILELANG_CHECK_LAST_ERROR(name)
static struct {} attention_kernel;
static const char* cudaGetErrorString(int) { return ""; }
template <class F> int cudaFuncSetAttribute(F&, int, int) { return 0; }
template <class F, class... Parameters> void cudaLaunchKernelEx(cudaLaunchConfig_t* c, F&, const Parameters&... p) {
  const unsigned shape[] = {c->gridDim.x, c->gridDim.y, c->gridDim.z, c->blockDim.x, c->blockDim.y, c->blockDim.z,
                            c->dynamicSmemBytes};
  launched(shape, c->stream);
  (hex(&p, sizeof p), ...);
}
