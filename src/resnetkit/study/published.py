"""The numbers in He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

Numbers are stored as text, as printed: the digits limit how exactly they can be compared. Nothing
here is computed, and the study derives nothing from these numbers.
"""

from __future__ import annotations

# Table 1: multiply-adds in billions, and the blocks of each stage.
TABLE1_GMACS = {18: "1.8", 34: "3.6", 50: "3.8", 101: "7.6", 152: "11.3"}
TABLE1_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
TABLE1_SIDES = (56, 28, 14, 7)  # of the feature maps of conv2_x to conv5_x
TABLE1_BASIC = tuple(f"3x3,{c} 3x3,{c}" for c in (64, 128, 256, 512))
TABLE1_BOTTLENECK = tuple(f"1x1,{c} 3x3,{c} 1x1,{4 * c}" for c in (64, 128, 256, 512))

# Figure 3, and section 4.1 for VGG-16: multiply-adds in billions.
FIGURE3_GMACS = {"VGG-19": "19.6", "34-layer plain": "3.6", "34-layer residual": "3.6"}
SECTION41_GMACS = {"VGG-16": "15.3"}

# Table 3: errors on ImageNet's validation images in %, mean of ten crops: top-1, top-5.
TABLE3_ERRORS = {
    "plain-34": ("28.54", "10.02"),
    "ResNet-34 A": ("25.03", "7.76"),
    "ResNet-34 B": ("24.52", "7.46"),
    "ResNet-34 C": ("24.19", "7.40"),
}

# Table 6: CIFAR-10; parameters in millions, test error in %. For ResNet-110, it is the best of five
# runs, whose mean is 6.61 with a standard deviation of 0.16.
TABLE6_PARAMETERS = {
    20: "0.27",
    32: "0.46",
    44: "0.66",
    56: "0.85",
    110: "1.7",
    1202: "19.4",
}
TABLE6_ERRORS = {20: "8.75", 32: "7.51", 44: "7.17", 56: "6.97", 110: "6.43", 1202: "7.93"}
