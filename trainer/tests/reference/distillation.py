"""Distillation losses and their gradients in PyTorch.

    python distillation.py > distillation.json
"""

import json

import torch
import torch.nn.functional as F

torch.manual_seed(0)
cases = []
for temperature, rows, scale in [(1.0, (3, 4), 2.0), (4.0, (2, 5), 20.0), (2.5, (1, 3), 8.0), (None, (3, 6), 1.0)]:
    student = (torch.randn(rows) * scale).requires_grad_()
    teacher = torch.randn(rows) * scale
    if temperature is None:
        loss = (F.normalize(student) - F.normalize(teacher)).square().sum(1).mean() / 2
    else:
        soft = F.log_softmax(student / temperature, 1)
        target = F.log_softmax(teacher / temperature, 1)
        loss = F.kl_div(soft, target, log_target=True, reduction="batchmean") * temperature**2
    loss.backward()
    cases.append(
        {
            "temperature": temperature,
            "student": student.detach().tolist(),
            "teacher": teacher.tolist(),
            "loss": loss.item(),
            "gradient": student.grad.tolist(),
        }
    )
print(json.dumps(cases, indent=1))
