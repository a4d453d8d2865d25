/* A picture in memory, what can be drawn on it, and its PNG file. */
#ifndef CLATTN_CLI_PICTURE_H
#define CLATTN_CLI_PICTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct color {
    uint8_t r, g, b;
} color;

typedef struct picture {
    int width, height;
    color *pixels; /* [height, width] */
} picture;

/* White. CLI_FAILED: no memory, and it has said so. */
int picture_make(picture *p, int width, int height);
void picture_free(picture *p);

/* What lies outside the picture is left out. */
void picture_fill(picture *p, int x, int y, int width, int height, color c);

/* Text of the size of TEXT_HEIGHT, its upper left corner at (x, y): letters, digits and a few marks, all small letters. A
 * text that goes upwards begins at its lower left corner. */
enum { TEXT_SCALE = 2, TEXT_STEP = 6 * TEXT_SCALE, TEXT_HEIGHT = 7 * TEXT_SCALE, TEXT_LINE = 11 * TEXT_SCALE };
typedef enum text_way { TEXT_ACROSS, TEXT_UPWARDS } text_way;
void picture_text(picture *p, int x, int y, text_way way, color c, const char *text);
int picture_text_width(const char *text);

/* False when the program was built without libpng: then it writes nothing. */
bool picture_can_write(void);
bool picture_write(const picture *p, FILE *to);

#endif
