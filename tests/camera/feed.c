/* Shows a file's bytes as every frame of a v4l2loopback device:
 * feed DEVICE FILE FOURCC WIDTH HEIGHT */
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static char frame[4 << 20];

int main(int count, char **arguments)
{
	if (count != 6)
		return 2;
	int device = open(arguments[1], O_RDWR);
	FILE *file = fopen(arguments[2], "rb");
	if (device < 0 || !file) {
		perror("feed");
		return 1;
	}
	size_t length = fread(frame, 1, sizeof frame, file);
	const char *code = arguments[3];
	struct v4l2_format format;
	memset(&format, 0, sizeof format);
	format.type = V4L2_BUF_TYPE_VIDEO_OUTPUT;
	format.fmt.pix.width = atoi(arguments[4]);
	format.fmt.pix.height = atoi(arguments[5]);
	format.fmt.pix.pixelformat = v4l2_fourcc(code[0], code[1], code[2], code[3]);
	format.fmt.pix.field = V4L2_FIELD_NONE;
	format.fmt.pix.sizeimage = length;
	if (ioctl(device, VIDIOC_S_FMT, &format)) {
		perror("feed: format");
		return 1;
	}
	while (write(device, frame, length) >= 0)
		usleep(50000);
	perror("feed: write");
	return 1;
}
