// The texts of the page, in the browser's language.

const ENGLISH = {
  title: (architecture) => `${architecture}: which class is it?`,
  about: (count) =>
    `This model knows ${count} classes. It runs in this browser: your photos stay on your machine.`,
  choose: "Choose photos",
  hint: "or drop or paste them here",
  photos: "Photos",
  clear: "Remove all",
  loading: (megabytes) => `Loading the model: ${megabytes} MB`,
  starting: "Starting the model",
  ready: "Ready",
  working: "Working",
  unreadable: "This browser cannot read the file as an image.",
  deep: "For images with 16 bits per color, use the command “resnet predict”.",
  failed: (reason) => `This photo could not be classified: ${reason}`,
  broken: (reason) => `The model could not be started: ${reason}`,
  answered: (name, label, share) => `${name}: ${label}, ${share}`,
  verifyTitle: "Is it the same model?",
  verifyHint:
    "The model file holds images, and the result of each stage in PyTorch at the time of export. " +
    "Verify computes these results again in this browser.",
  verify: "Verify",
  verifying: (done, total) => `Verifying: image ${done} of ${total}`,
  unverified: (reason) => `The model could not be verified: ${reason}`,
  agrees: (compared, total) =>
    `Agrees with PyTorch at every stage, for ${compared} of ${total} images.`,
  disagrees: (stage) => `Disagrees: ${stage} is the first stage that differs.`,
  nothing: "Nothing was compared: this browser decodes every image differently.",
  undecoded: (names) =>
    `Not decoded identically here: ${names}. This browser decodes CMYK, 16 bits or transparency in its own way, ` +
    "so these images were not compared.",
  stage: "Stage",
  images: "Images",
  largest: "Largest difference",
  result: "Result",
  same: "agrees",
  differs: (names) => `differs: ${names}`,
  none: "not compared",
  stages: {
    decoded: "decoded",
    cropped: "cropped",
    normalized: "normalized",
    logits: "logits",
    probabilities: "probabilities",
    class: "class",
  },
  source: (digest) => `Model file: SHA-256 ${digest}…`,
  accuracy: (share) => `Measured accuracy: ${share}`,
  license: (name) => `License of the weights: ${name}`,
  join: ", ",
};

const CHINESE = {
  title: (architecture) => `${architecture}：这是哪一类？`,
  about: (count) => `这个模型认识 ${count} 个类别。它在浏览器里运行：照片不会离开你的机器。`,
  choose: "选择照片",
  hint: "或者拖放、粘贴到这里",
  photos: "照片",
  clear: "全部移除",
  loading: (megabytes) => `正在加载模型：${megabytes} MB`,
  starting: "正在启动模型",
  ready: "就绪",
  working: "正在处理",
  unreadable: "这个浏览器读不了这个文件，它可能不是图片。",
  deep: "每种颜色 16 位的图片请用命令 resnet predict。",
  failed: (reason) => `这张照片没有得到答案：${reason}`,
  broken: (reason) => `模型没能启动：${reason}`,
  answered: (name, label, share) => `${name}：${label}，${share}`,
  verifyTitle: "还是同一个模型吗？",
  verifyHint: "模型文件里有一些图片，以及导出时 PyTorch 在每个阶段得到的结果。校验就是在这个浏览器里重做一遍。",
  verify: "校验",
  verifying: (done, total) => `正在校验：第 ${done} 张图片，共 ${total} 张`,
  unverified: (reason) => `未能校验：${reason}`,
  agrees: (compared, total) => `每个阶段都与 PyTorch 一致：${total} 张图片中的 ${compared} 张。`,
  disagrees: (stage) => `不一致：第一个不同的阶段是${stage}。`,
  nothing: "没有可比较的图片：这个浏览器对每张图片的解码都不同。",
  undecoded: (names) =>
    `这里未能同样解码：${names}。这个浏览器对 CMYK、16 位或透明度有自己的解码方式，所以没有比较这些图片。`,
  stage: "阶段",
  images: "图片",
  largest: "最大差异",
  result: "结果",
  same: "一致",
  differs: (names) => `不同：${names}`,
  none: "没有比较",
  stages: {
    decoded: "解码",
    cropped: "裁剪",
    normalized: "归一化",
    logits: "logits",
    probabilities: "概率",
    class: "类别",
  },
  source: (digest) => `模型文件：SHA-256 ${digest}…`,
  accuracy: (share) => `测得的准确率：${share}`,
  license: (name) => `权重的许可证：${name}`,
  join: "、",
};

const isChinese = navigator.language.toLowerCase().startsWith("zh");

export const language = isChinese ? "zh-CN" : "en";
export const text = isChinese ? CHINESE : ENGLISH;
