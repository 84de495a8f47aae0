// Stand-ins for the headers of gloo, which libtorch does not ship: what ProcessGroupGloo.hpp of
// libtorch 2.11 names. They only declare. c10d holds these objects by pointer, and a definition
// here would take the place of libtorch's own.
#pragma once
