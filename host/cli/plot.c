/* SVG by hand: the frame, its ticks, the lines, the legend below. */
#include "plot.h"

#include <math.h>

enum {
    WIDTH = 880,
    LEFT = 76,
    RIGHT = 24,
    TOP = 70,
    PLOT_HEIGHT = 380,
    LEGEND_TOP = 64,
    LEGEND_STEP = 21,
    MARGIN = 14
};
static const int frame_right = WIDTH - RIGHT, frame_bottom = TOP + PLOT_HEIGHT;

/* Told apart by eyes of every kind, in print too. */
static const char *const colors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};
enum { N_COLORS = sizeof colors / sizeof colors[0] };

/* Where things lie on the picture. */
typedef struct axes {
    double x_first, x_last, y_last, y_step;
} axes;

static double x_at(const axes *a, double x)
{
    const double span = log2(a->x_last / a->x_first);
    return span > 0 ? LEFT + (frame_right - LEFT) * log2(x / a->x_first) / span : 0.5 * (LEFT + frame_right);
}

static double y_at(const axes *a, double y) { return frame_bottom - PLOT_HEIGHT * y / a->y_last; }

/* Up to the largest y, in 5 to 10 steps of 1, 2 or 5 times a power of ten. */
static axes axes_of(const plot *p)
{
    axes a = {p->x_ticks[0], p->x_ticks[p->n_x_ticks - 1], 1, 1};
    double most = 0;
    for (int i = 0; i < p->n_lines; i++)
        for (int j = 0; j < p->lines[i].n; j++) most = fmax(most, p->lines[i].y[j]);
    if (!(most > 0)) return a;
    const double power = pow(10, floor(log10(most / 5))), leading = most / 5 / power; /* 1..10 */
    a.y_step = power * (leading < 2 ? 1 : leading < 5 ? 2 : 5);
    a.y_last = a.y_step * ceil(most * 1.04 / a.y_step);
    return a;
}

static void write_escaped(const char *text, FILE *to)
{
    for (; *text; text++) switch (*text) {
        case '<': fputs("&lt;", to); break;
        case '>': fputs("&gt;", to); break;
        case '&': fputs("&amp;", to); break;
        case '"': fputs("&quot;", to); break;
        default: fputc((unsigned char)*text < 32 ? ' ' : *text, to);
        }
}

/* Text at a place; more: further attributes. */
static void write_text(double x, double y, const char *more, const char *text, FILE *to)
{
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, more);
    write_escaped(text, to);
    fputs("</text>\n", to);
}

static void write_frame(const plot *p, const axes *a, FILE *to)
{
    char text[64];
    double free_from = 0; /* where the next x label may begin */
    for (int i = 0; i <= (int)(a->y_last / a->y_step + 0.5); i++) {
        const double y = y_at(a, i * a->y_step);
        fprintf(to, "<path d=\"M%d %.1fH%d\" stroke=\"#e4e4e4\"/>\n", LEFT, y, frame_right);
        snprintf(text, sizeof text, "%g", i * a->y_step);
        write_text(LEFT - 8, y + 4, " text-anchor=\"end\"", text, to);
    }
    for (int i = p->n_x_ticks - 1; i >= 0; i--) { /* the last one, the problem's own, always has its label */
        const double x = x_at(a, p->x_ticks[i]);
        const int n = snprintf(text, sizeof text, "%.0f", p->x_ticks[i]);
        fprintf(to, "<path d=\"M%.1f %dv5\" stroke=\"#444\"/>\n", x, frame_bottom);
        if (i < p->n_x_ticks - 1 && x + 4 * n + 4 > free_from) continue;
        write_text(x, frame_bottom + 20, " text-anchor=\"middle\"", text, to);
        free_from = x - 4 * n - 4;
    }
    fprintf(to, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#444\"/>\n", LEFT, TOP, frame_bottom, frame_right);
    write_text(0.5 * (LEFT + frame_right), frame_bottom + 42, " text-anchor=\"middle\"", p->x_label, to);
    snprintf(text, sizeof text, " text-anchor=\"middle\" transform=\"rotate(-90 22 %d)\"", TOP + PLOT_HEIGHT / 2);
    write_text(22, TOP + PLOT_HEIGHT / 2, text, p->y_label, to);
}

/* The attributes of a line; number: which measured line it is. */
static void write_stroke(plot_style style, int number, FILE *to)
{
    if (style == PLOT_MEASURED)
        fprintf(to, " fill=\"none\" stroke=\"%s\" stroke-width=\"2.2\"", colors[number % N_COLORS]);
    else
        fprintf(to, " fill=\"none\" stroke=\"%s\" stroke-width=\"1.6\" stroke-dasharray=\"%s\"",
                style == PLOT_PEAK ? "#333" : "#888", style == PLOT_PEAK ? "9 5" : "2 4");
}

static void write_line(const plot_line *l, const axes *a, int number, FILE *to)
{
    fputs("<polyline points=\"", to);
    for (int i = 0; i < l->n; i++) fprintf(to, "%s%.1f,%.1f", i ? " " : "", x_at(a, l->x[i]), y_at(a, l->y[i]));
    fputs("\"", to);
    write_stroke(l->style, number, to);
    fputs(" stroke-linejoin=\"round\"/>\n", to);
    for (int i = 0; i < l->n && l->style == PLOT_MEASURED; i++)
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.6\" fill=\"%s\"><title>%.0f: %.3g</title></circle>\n",
                x_at(a, l->x[i]), y_at(a, l->y[i]), colors[number % N_COLORS], l->x[i], l->y[i]);
}

static void write_legend_row(const plot_line *l, int row, int number, FILE *to)
{
    const int y = frame_bottom + LEGEND_TOP + row * LEGEND_STEP;
    fprintf(to, "<path d=\"M%d %dh34\"", LEFT, y);
    write_stroke(l->style, number, to);
    fputs("/>\n", to);
    if (l->style == PLOT_MEASURED)
        fprintf(to, "<circle cx=\"%d\" cy=\"%d\" r=\"3.6\" fill=\"%s\"/>\n", LEFT + 17, y, colors[number % N_COLORS]);
    write_text(LEFT + 44, y + 4, "", l->label, to);
}

bool plot_write(const plot *p, FILE *to)
{
    const axes a = axes_of(p);
    const int height = frame_bottom + LEGEND_TOP + p->n_lines * LEGEND_STEP + MARGIN - LEGEND_STEP / 2;
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n<title>",
            WIDTH, height, WIDTH, height);
    write_escaped(p->title, to);
    fprintf(to, "</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", WIDTH, height);
    write_text(LEFT, 30, " font-size=\"17\" font-weight=\"bold\"", p->title, to);
    write_text(LEFT, 52, " fill=\"#555\"", p->subtitle, to);
    write_frame(p, &a, to);
    for (int pass = 0; pass < 2; pass++) /* the measured ones on top */
        for (int i = 0, number = 0; i < p->n_lines; i++) {
            const bool measured = p->lines[i].style == PLOT_MEASURED;
            if (measured == (pass == 1)) write_line(&p->lines[i], &a, number, to);
            number += measured;
        }
    for (int i = 0, number = 0; i < p->n_lines; i++) {
        write_legend_row(&p->lines[i], i, number, to);
        number += p->lines[i].style == PLOT_MEASURED;
    }
    fputs("</svg>\n", to);
    return !ferror(to);
}
