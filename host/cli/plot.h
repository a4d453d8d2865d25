/* A line chart as SVG: shares over lengths, the lengths on a scale of powers of two. */
#ifndef CLATTN_CLI_PLOT_H
#define CLATTN_CLI_PLOT_H

#include <stdbool.h>
#include <stdio.h>

enum { PLOT_MOST_LINES = 16, PLOT_MOST_POINTS = 64 };

typedef enum plot_style {
    PLOT_MEASURED,
    PLOT_PEAK,
    PLOT_ROOF
} plot_style; /* a colour of its own with marks; dashed; dotted */

typedef struct plot_line {
    char label[256];
    plot_style style;
    double x[PLOT_MOST_POINTS], y[PLOT_MOST_POINTS]; /* x above 0, y at least 0 */
    int n;
} plot_line;

typedef struct plot {
    const char *title, *subtitle, *x_label, *y_label;
    double x_ticks[PLOT_MOST_POINTS];
    int n_x_ticks; /* at least 1, growing; the first and the last are the ends of the axis */
    plot_line lines[PLOT_MOST_LINES];
    int n_lines;
} plot;

/* False when not all of it could be written. */
bool plot_write(const plot *p, FILE *to);

#endif
