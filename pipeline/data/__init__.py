"""Where images come from: torchvision's data sets, a folder of pictures, the synthetic set; and the stages' own file."""
