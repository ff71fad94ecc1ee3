// Macros for enumerations whose values have names in Python. Each enumeration is written once, as a list X(name, ...).
#pragma once

#include <cstddef>
#include <cstring>

#define FDK_ENUMERATOR(name, ...) name,
#define FDK_NAME(name, ...) #name,

namespace fdkernels {

// Returns false if `names` lacks the name.
template <class Enum, size_t kCount>
bool find_name(const char* const (&names)[kCount], const char* name, Enum* found) {
  for (size_t i = 0; i < kCount; ++i) {
    if (std::strcmp(name, names[i]) != 0) continue;
    *found = static_cast<Enum>(i);
    return true;
  }
  return false;
}

}  // namespace fdkernels
