# Turns every file of cl/ into a C byte array and lists them in one table:
#   cmake -DOUT=embedded.c "-DFILES=a.cl;b.clh" -P EmbedKernels.cmake
# Bytes, not string literals: C guarantees only 4095 characters of those.
set(arrays "")
set(table "")
foreach(file IN LISTS FILES)
  get_filename_component(name "${file}" NAME)
  string(MAKE_C_IDENTIFIER "${name}" id)
  file(READ "${file}" hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND arrays "static const unsigned char ${id}[] = {${bytes}0};\n")
  string(APPEND table "    {\"${name}\", (const char *)${id}, sizeof ${id} - 1},\n")
endforeach()
file(WRITE "${OUT}.new" "/* Made from cl/ by EmbedKernels.cmake. */
#include \"embedded.h\"

${arrays}
const embedded_file clattn__embedded[] = {
${table}    {0, 0, 0},
};
")
file(RENAME "${OUT}.new" "${OUT}")
