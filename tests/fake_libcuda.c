/* A driver of one device whose memory is the host's: it says on stderr what it is asked for.
   The functions that backends/cuda/nvidia.py calls, under the names that the real one exports. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef int Result;
typedef void *Handle;

#define SAY(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))

static Handle current;
static char image[] = "\177ELF of PTX";
static int asked;

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : 0; }
Result cuDevicePrimaryCtxRetain(Handle *context, int device) {
  *context = (Handle)0x1000;
  SAY("retain %d", device);
  return 0;
}
Result cuCtxGetCurrent(Handle *context) { *context = current; return 0; }
Result cuCtxPushCurrent_v2(Handle context) { current = context; SAY("push %p", context); return 0; }
Result cuCtxPopCurrent_v2(Handle *context) {
  if (context) *context = current;
  current = 0;
  SAY("pop");
  return 0;
}
Result cuLinkCreate_v2(unsigned count, Handle options, Handle values, Handle *linker) {
  *linker = (Handle)0x77;
  return 0;
}
Result cuLinkAddData_v2(Handle linker, int type, char *data, size_t size, const char *name,
                        unsigned count, Handle options, Handle values) {
  SAY("link %d %s %zu %d %s", type, name, size, data[size - 1], data);
  return strstr(data, "too new") ? 222 : 0;
}
Result cuLinkComplete(Handle linker, Handle *out, size_t *size) {
  *out = image;
  *size = sizeof image - 1;
  return 0;
}
Result cuLinkDestroy(Handle linker) { SAY("destroy %p", linker); return 0; }
Result cuModuleLoadData(Handle *module, char *data) {
  SAY("load %s", data + 1);
  *module = (Handle)0x99;
  return 0;
}
Result cuModuleGetFunction(Handle *function, Handle module, const char *name) {
  SAY("function %s of %p", name, module);
  *function = (Handle)0x55;
  return 0;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, Handle from, size_t size, Handle stream) {
  SAY("copy %zu on %p", size, stream);
  memcpy((Handle)to, from, size);
  return 0;
}
Result cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                      unsigned by, unsigned bz, unsigned shared, Handle stream,
                      long long **arguments, Handle *extra) {
  SAY("launch %p %u %u %u, %u %u %u, %u on %p: %lld %lld %lld", function, gx, gy, gz, bx, by, bz,
      shared, stream, *arguments[0], *arguments[1], *arguments[2]);
  return gx == 13 ? 719 : 0;
}
Result cuEventCreate(Handle *event, unsigned flags) {
  *event = (Handle)0x33;
  SAY("event %u", flags);
  return 0;
}
Result cuEventRecord(Handle event, Handle stream) { SAY("record %p on %p", event, stream); return 0; }
Result cuEventQuery(Handle event) { return asked++ ? 0 : 600; }
Result cuEventDestroy_v2(Handle event) { SAY("destroyed"); return 0; }
Result cuGetErrorString(Result error, const char **text) {
  *text = error == 222 ? "an unsupported toolchain" : "unspecified launch failure";
  return 0;
}

Result cuGetProcAddress_v2(const char *name, Handle *found, int version, uint64_t flags,
                           int *status);
static const struct { const char *name; Handle function; } exported[] = {
#define SAME(name) {#name, name},
#define SECOND(name) {#name, name##_v2},
  SAME(cuInit) SAME(cuDriverGetVersion) SAME(cuDeviceGet) SAME(cuDevicePrimaryCtxRetain)
  SAME(cuCtxGetCurrent) SECOND(cuCtxPushCurrent) SECOND(cuCtxPopCurrent) SECOND(cuLinkCreate)
  SECOND(cuLinkAddData) SAME(cuLinkComplete) SAME(cuLinkDestroy) SAME(cuModuleLoadData)
  SAME(cuModuleGetFunction) SECOND(cuMemcpyHtoDAsync) SAME(cuLaunchKernel) SAME(cuEventCreate)
  SAME(cuEventRecord) SAME(cuEventQuery) SECOND(cuEventDestroy) SAME(cuGetErrorString)
  SECOND(cuGetProcAddress)  /* by which cuda-bindings 12.8 asks for itself */
  {0, 0}
};

Result cuGetProcAddress_v2(const char *name, Handle *found, int version, uint64_t flags,
                           int *status) {
  *found = 0;
  for (int i = 0; exported[i].name; i++)
    if (!strcmp(exported[i].name, name)) *found = exported[i].function;
  if (status) *status = *found ? 0 : 1;
  return *found ? 0 : 500;
}
Result cuGetProcAddress(const char *name, Handle *found, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, found, version, flags, 0);
}
