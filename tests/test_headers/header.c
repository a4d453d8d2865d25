/* One public header, alone and twice. C and C++. */
#include HEADER
#include HEADER

typedef clattn_status takes_a_name_from_it;
