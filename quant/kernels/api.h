// How the library's functions are exported.

#pragma once

#if defined(_WIN32)
#define AYAEDGE_API extern "C" __declspec(dllexport)
#else
#define AYAEDGE_API extern "C" __attribute__((visibility("default")))
#endif
