"""What the lesson and the training say: each message in English and in Chinese.

Placeholders stand in braces, and are the same in both. A line of English has at most 100 columns,
and so has one of Chinese, whose letters take two.
"""

from __future__ import annotations

from typing import Final

MESSAGES: Final[dict[str, tuple[str, str]]] = {
    # The lesson: its beginning.
    "lesson heading": ("One update of a network's weights", "更新一次网络的权重"),
    "lesson beginning": (
        "LeNet is a small network that reads digits. It has {weights:,} weights: plain numbers.\n"
        "To learn is to change each of them a little, again and again:",
        "LeNet 是一个识别手写数字的小网络，有 {weights:,} 个权重：都是普通的数。\n"
        "学习，就是把每个权重一次又一次地稍微改动：",
    ),
    "lesson rule": (
        "weight = weight − learning rate · gradient",
        "权重 = 权重 − 学习率 · 梯度",
    ),
    "lesson meaning": (
        "The gradient says how fast the error grows when the weight grows. So the weight goes the\n"
        "other way, and the learning rate says how far.",
        "梯度说明：权重增大时，误差增长得多快。所以权重要往相反的方向走，学习率决定走多远。",
    ),
    # 1.
    "backward heading": (
        "1. The gradient comes from backward()",
        "1. 梯度由 backward() 算出",
    ),
    "code at random": ("at random", "随机抽取"),
    "backward loss": (
        "The loss is {loss}: the error of the network's answer. We look at {name},\n"
        "{count:,} of the weights:",
        "损失是 {loss}：网络的回答错了这么多。我们来看 {name}，\n它是其中的 {count:,} 个权重：",
    ),
    "backward nobody asked": (
        "(nobody has asked for a gradient yet)",
        "（还没有人要求计算梯度）",
    ),
    "backward unchanged": ("(unchanged)", "（没有变）"),
    # 2.
    "hand heading": ("2. The update by hand", "2. 手写更新"),
    "code in place": ("sub_ subtracts in place", "sub_ 原地相减"),
    "hand place": ("For {place} that was:", "对 {place} 来说，就是："),
    "hand rule": ("weight − gradient · learning rate", "权重 − 梯度 · 学习率"),
    "hand no gradient": (
        "Its gradient is 0: this weight has no influence on the loss here, and stays as it is.\n"
        "Choose another one with --index.",
        "它的梯度是 0：这个权重在这里不影响损失，所以保持不变。\n可以用 --index 换一个。",
    ),
    "hand too small": (
        "The step is so small that a float32 number has no digit for it: the weight stays the\n"
        "same.",
        "这一步太小，float32 没有足够的位数来表示它：权重不变。",
    ),
    # 3.
    "optimizer heading": ("3. The update by an optimizer", "3. 由优化器更新"),
    "optimizer beginning": (
        "The same network with the same gradients. Now an optimizer does the work:",
        "同样的网络，同样的梯度。现在由优化器来做：",
    ),
    "optimizer same rule": (
        "Its rule is that very line. (w is the weight, g its gradient, lr the learning rate.)",
        "它的规则正是那一行。（w 是权重，g 是它的梯度，lr 是学习率。）",
    ),
    "optimizer other rule": (
        "Its rule is another. ('gradstep explain {name}' says what the names mean.)",
        "它的规则不同。（各个名字的含义见 'gradstep explain {name}'。）",
    ),
    "optimizer agrees": (
        "That is what step() wrote, bit for bit.",
        "step() 写入的正是这个数，每一位都相同。",
    ),
    "optimizer wrote": ("step() wrote {written}.", "step() 写入的是 {written}。"),
    "optimizer by hand": (" By hand it was {result}.", "手写得到的是 {result}。"),
    # 4.
    "comparison heading": (
        "4. By hand and by the optimizer: all {total:,} weights",
        "4. 手写与优化器：全部 {total:,} 个权重",
    ),
    "comparison heading two ways": (
        "4. Worked out in two ways: all {total:,} weights",
        "4. 用两种方式计算：全部 {total:,} 个权重",
    ),
    "comparison engines": (
        "engine='eager' runs this rule as it is written, one of torch's operations after the\n"
        "other. The optimizer above ran one loop for all of it. Compared:",
        "engine='eager' 按规则的原文，一个接一个地执行 torch 的运算；上面的优化器只用一个循环\n"
        "做完全部。两者相比：",
    ),
    "count agree": ("agree in every bit", "每一位都相同"),
    "count differ by one": (
        "differ by {units} unit in the last place",
        "末位相差 {units} 个单位",
    ),
    "count differ": ("differ by {units} units in the last place", "末位相差 {units} 个单位"),
    "count range": ("{low} to {high:,}", "{low} 到 {high:,}"),
    "comparison none": ("Not one was rounded otherwise.", "没有一个权重的舍入不同。"),
    "comparison no rounding": (
        "With a learning rate such as 0.5 or 0.25, gradient · lr needs no rounding.",
        "学习率是 0.5 或 0.25 这样的数时，梯度 · lr 不需要舍入。",
    ),
    "comparison why": (
        "Why do some differ? A float32 number has 24 binary digits, about 7 decimal ones. What does\n"
        "not fit is rounded off, to the nearest number that fits. By hand, the product is rounded, and\n"
        "then the difference: twice. The optimizer rounds once, at the end (a fused multiply-add).",
        "为什么有些不同？float32 有 24 个二进制位，约合 7 个十进制位。放不下的部分要舍入到最近的、\n"
        "放得下的数。手写时先舍入乘积，再舍入差：两次。优化器只在最后舍入一次（乘加融合运算）。",
    ),
    "comparison why rule": (
        "Both are right. A float32 number has 24 binary digits, about 7 decimal ones, and what does\n"
        "not fit is rounded off. The loop rounds once where torch's operations round twice: a product\n"
        "and the sum that takes it in are one operation (a fused multiply-add).",
        "两者都对。float32 有 24 个二进制位，约合 7 个十进制位，放不下的部分要舍入。torch 的运算\n"
        "舍入两次的地方，这个循环只舍入一次：乘积和把它加进去的和是同一个运算（乘加融合运算）。",
    ),
    "comparison torch": (
        "torch.optim.SGD rounds once as well: {count} weights agree with the optimizer's, bit "
        "for bit.",
        "torch.optim.SGD 也只舍入一次：{count} 个权重与这个优化器的结果每一位都相同。",
    ),
    "count all": ("all {total:,}", "全部 {total:,}"),
    "count of": ("{part:,} of {total:,}", "{total:,} 个中有 {part:,}"),
    "digits beginning": (
        "{place} with more digits than a float32 number has:",
        "{place}，写出比 float32 更多的位数：",
    ),
    "digits weight": ("weight", "权重"),
    "digits gradient": ("gradient", "梯度"),
    "digits rate": ("learning rate", "学习率"),
    "digits rate note": ("the float32 number nearest to it", "最接近它的 float32 数"),
    "digits product exact": ("gradient · lr, exact", "梯度 · lr，精确值"),
    "digits product rounded": ("gradient · lr, rounded", "梯度 · lr，舍入后"),
    "digits product note": ("what the update by hand goes on with", "手写更新接着用的数"),
    "digits difference exact": ("weight − gradient · lr, exact", "权重 − 梯度 · lr，精确值"),
    "digits twice": ("  rounded twice, by hand", "  舍入两次，手写"),
    "digits once": ("  rounded once, optimizer", "  舍入一次，优化器"),
    "digits off": ("off by {units:.2f} units", "相差 {units:.2f} 个单位"),
    "digits end": (
        "A unit in the last place is {gap:.1e} here: the gap to the next number.",
        "末位的一个单位在这里是 {gap:.1e}：到下一个数的间隔。",
    ),
    # 5.
    "zero heading": ("5. If zero_grad() is forgotten", "5. 如果忘记 zero_grad()"),
    "zero beginning": (
        "backward() does not replace a gradient: it adds to the one that is there. So the old one\n"
        "must go before the next image:",
        "backward() 不会替换梯度，而是加到已有的梯度上。所以在下一张图像之前，必须清除旧梯度：",
    ),
    "zero second": (
        "A second image and target, with that line and without, for {place}:",
        "再来一张图像和一个目标，有这一行与没有这一行，对 {place}：",
    ),
    "zero first gradient": ("gradient of the first image", "第一张图像的梯度"),
    "zero second gradient": ("gradient of the second image", "第二张图像的梯度"),
    "zero should": ("the one that should arrive", "应该得到的"),
    "zero without": ("without zero_grad()", "没有 zero_grad()"),
    "zero does": ("the one that does", "实际得到的"),
    "zero weight with": ("new weight, with zero_grad()", "新权重，有 zero_grad()"),
    "zero weight without": ("new weight, without it", "新权重，没有它"),
    "verdict too large": (
        "These steps are too large for float32 numbers. Choose a smaller learning rate.",
        "这样的步长超出了 float32 的范围。请选小一些的学习率。",
    ),
    "verdict same": (
        "This weight is lucky: both steps are the same.",
        "这个权重很幸运：两种走法一样。",
    ),
    "verdict moved": (
        "The weight moves, and should have stayed.",
        "权重动了，而它本该不动。",
    ),
    "verdict stayed": (
        "The weight stays, and should have moved.",
        "权重没有动，而它本该移动。",
    ),
    "verdict wrong way": ("The weight goes the wrong way.", "权重走错了方向。"),
    "verdict nearly": (
        "This weight is lucky: both steps are nearly the same.",
        "这个权重很幸运：两种走法几乎一样。",
    ),
    "verdict longer": (
        "The step is {times} times as long as it should be.",
        "这一步的长度是应有的 {times} 倍。",
    ),
    "extent none": (
        "So it is with all {total:,} weights here.",
        "这里全部 {total:,} 个权重都是如此。",
    ),
    "extent some": (
        "Of all {total:,} weights, {spoiled:,} end up elsewhere; further images add to that.",
        "全部 {total:,} 个权重中，有 {spoiled:,} 个到了别处；再来的图像会让差别更大。",
    ),
    # Its end.
    "end beginning": ("So each round of training is:", "所以训练的每一轮是："),
    "code forget": ("forget the old gradients", "忘掉旧梯度"),
    "code work out": ("work out new ones", "计算新梯度"),
    "code change": ("change the weights", "改动权重"),
    "end next": ("Next: {commands}", "接下来：{commands}"),
    "between commands": (", ", "，"),
    # A formula with its numbers.
    "rounded to": (", rounded to {number}", "，舍入为 {number}"),
    "stored as": (", stored as {format}: {number}", "，存为 {format}：{number}"),
    "first step": ("this is the first step", "这是第一步"),
    "not first step": ("this is not the first step", "这不是第一步"),
    "does not hold": ("not: {condition}", "不成立：{condition}"),
    "between reasons": ("; ", "；"),
    "aside": ("({text})", "（{text}）"),
    "sum over everything": (
        "sum over all {elements} of {parameters}",
        "{parameters}的全部 {elements}之和",
    ),
    "entry": ("entry {place} of {name}", "{name} 的 {place}"),
    "gathered whole": ("{noun} all {things}", "全部 {things}的{noun}"),
    "gathered one": ("{noun} {things}", "{things}的{noun}"),
    "gathered part": (
        "{noun} the {things}{part}{matrix}",
        "{matrix}{part}{things}的{noun}",
    ),
    "largest of": ("largest of", "最大值"),
    "sum of": ("sum of", "和"),
    "sum over": ("sum over", "和"),
    "of row": (" of row {number}", "第 {number} 行的 "),
    "of unit": (" of unit {number}", "第 {number} 个单元的 "),
    "of column": (" of column {number}", "第 {number} 列的 "),
    "of matrix": (" of matrix {place}", "矩阵 {place} 的"),
    "one element": ("{count} element", "{count} 个元素"),
    "several element": ("{count} elements", "{count} 个元素"),
    "one row": ("{count} row", "{count} 行"),
    "one unit": ("{count} unit", "{count} 个单元"),
    "several row": ("{count} rows", "{count} 行"),
    "several unit": ("{count} units", "{count} 个单元"),
    "one column": ("{count} column", "{count} 列"),
    "several column": ("{count} columns", "{count} 列"),
    "one matrix": ("{count} matrix", "{count} 个矩阵"),
    "several matrix": ("{count} matrices", "{count} 个矩阵"),
    "one tensor": ("{count} tensor", "{count} 个张量"),
    "several tensor": ("{count} tensors", "{count} 个张量"),
    "one number": ("{count} number", "{count} 个数"),
    "several number": ("{count} numbers", "{count} 个数"),
    "one parameter": ("{count} parameter", "{count} 个参数"),
    "several parameter": ("{count} parameters", "{count} 个参数"),
    # The training.
    "train introduction": (
        "LeNet, {weights:,} weights. {data}: {learn:,} images to learn from, {test:,} to be tested "
        "on.",
        "LeNet，{weights:,} 个权重。{data}：用 {learn:,} 张图像学习，用 {test:,} 张测试。",
    ),
    "scikit-learn's digits": ("scikit-learn's digits", "scikit-learn 的手写数字"),
    "epoch": ("epoch", "轮次"),
    "loss": ("loss", "损失"),
    "test": ("test", "测试"),
    "epoch line": (
        "epoch {start}   train loss {loss}   train accuracy {train}   test accuracy {test}   "
        "{speed:,.0f} images/s   step {share}",
        "第 {start} 轮   训练损失 {loss}   训练准确率 {train}   测试准确率 {test}   "
        "{speed:,.0f} 张/秒   更新占 {share}",
    ),
    "epoch bar": ("epoch {epoch}/{epochs}", "第 {epoch}/{epochs} 轮"),
    "bar": (
        "loss {loss}  {right} right  {speed:,.0f} images/s  step {share}",
        "损失 {loss}  正确 {right}  {speed:,.0f} 张/秒  更新占 {share}",
    ),
    "table optimizer": ("optimizer", "优化器"),
    "table lr": ("lr", "学习率"),
    "table loss": ("train loss", "训练损失"),
    "table accuracy": ("test accuracy", "测试准确率"),
    "table time": ("time", "时间"),
    "table step": ("a step", "一步"),
    "table share": ("share of time", "占时间"),
    "diverged": (
        "the loss of {name} is no longer a finite number: a learning rate of {lr:g} is too large; "
        "{advice}",
        "{name} 的损失不再是有限的数：学习率 {lr:g} 太大了；{advice}",
    ),
    "try lr": ("try --lr {lr:g}", "试试 --lr {lr:g}"),
    "try smaller": ("try a smaller --lr", "试试更小的 --lr"),
    "trained": ("Trained in {seconds:.0f} s. ", "训练用了 {seconds:.0f} 秒。"),
    "left": (
        "In {folder}: {pictures}, metrics.jsonl, checkpoints.",
        "{folder} 中有：{pictures}、metrics.jsonl、检查点。",
    ),
    "between pictures": (", ", "、"),
    "finished": (
        "{folder} is finished: {done} of {epochs} epochs done; a larger --epochs would make it "
        "longer",
        "{folder} 已经完成：{epochs} 轮中完成了 {done} 轮；更大的 --epochs 会让它更长",
    ),
    "going on": (
        "Going on with {folder}: {done} of {epochs} epochs done.",
        "继续 {folder}：{epochs} 轮中完成了 {done} 轮。",
    ),
    "stopped": ("stopped", "已停止"),
    "nothing written": ("; nothing has been written", "；没有写入任何东西"),
    "go on with": (
        "; go on with: gradstep train --resume {folder}",
        "；继续的命令：gradstep train --resume {folder}",
    ),
    "watch title": (
        "step {step:,}{norm}; root mean squares:",
        "第 {step:,} 步{norm}；均方根：",
    ),
    "watch norm": (", gradient norm {norm}", "，梯度范数 {norm}"),
    "watch ratio": ("update / weight", "更新 / 权重"),
    "watch update": ("update", "更新"),
    "watch gradient": ("gradient", "梯度"),
    "watch weight": ("weight", "权重"),
    "watch zeros": ("zero gradients", "零梯度"),
    "watch not finite": ("not finite", "非有限"),
    # About the language itself.
    "no letters": (
        "note: the output's encoding ({encoding}) has no Chinese letters, so this is English; with "
        "PYTHONIOENCODING=utf-8 it is Chinese",
        "注意：输出的编码（{encoding}）没有中文字符，所以用英文；设 PYTHONIOENCODING=utf-8 则用中文",
    ),
}
