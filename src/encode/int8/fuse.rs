//! Groups of nodes that stand for one thing, made one node: layer
//! normalisation, GELU, attention.

use std::collections::{HashMap, HashSet};

use super::graph::{Constant, Graph, Node};

/// Softmax of scaled products of queries and keys, times values: `q`, `k`
/// turned, `v`; the attribute `factor` scales the products.
pub const ATTENTION: &str = "FusedAttention";
/// `x · sigmoid(1.702 · x)`.
pub const QUICK_GELU: &str = "FusedQuickGelu";

/// Replaces what it knows, and leaves out what then leads nowhere.
pub fn fuse(graph: &mut Graph) {
    let groups = Groups::new(graph);
    let fused: Vec<(usize, Node)> = graph
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(index, node)| Some((index, groups.fused(node)?)))
        .collect();
    if fused.is_empty() {
        return;
    }
    for (index, node) in fused {
        graph.nodes[index] = node;
    }
    prune(graph);
}

/// Leaves out nodes of which nothing reaches the output.
fn prune(graph: &mut Graph) {
    let mut needed = HashSet::from([graph.output.clone()]);
    // Nodes stand in the order of the data: those that need come after.
    let mut keep = vec![false; graph.nodes.len()];
    for (node, keep) in graph.nodes.iter().zip(&mut keep).rev() {
        *keep = node.outputs.iter().any(|output| needed.contains(output));
        if *keep {
            needed.extend(node.inputs.iter().cloned());
        }
    }
    let mut keep = keep.into_iter();
    graph.nodes.retain(|_| keep.next().unwrap_or(true));
}

/// A graph in which nodes are found by what they write.
struct Groups<'a> {
    constants: &'a HashMap<String, Constant>,
    writers: HashMap<&'a str, &'a Node>,
}

impl<'a> Groups<'a> {
    fn new(graph: &'a Graph) -> Self {
        Self {
            constants: &graph.constants,
            writers: graph
                .nodes
                .iter()
                .map(|node| (node.output(), node))
                .collect(),
        }
    }

    fn fused(&self, node: &'a Node) -> Option<Node> {
        let fused = |op: &str, inputs: &[&str], attribute| {
            let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
            Some(Node::fused(op, node, inputs, attribute))
        };
        match node.op.as_str() {
            "Add" => self.either(node).into_iter().find_map(|(sum, beta)| {
                let (x, gamma, epsilon) = self.norm(self.writer(sum, "Mul")?)?;
                self.constants.get(beta)?.floats()?;
                fused(
                    "LayerNormalization",
                    &[x, gamma, beta],
                    ("epsilon", epsilon),
                )
            }),
            "Mul" => {
                if let Some((x, gamma, epsilon)) = self.norm(node) {
                    return fused("LayerNormalization", &[x, gamma], ("epsilon", epsilon));
                }
                if let Some(x) = self.gelu(node) {
                    return fused("Gelu", &[x], ("", 0.0));
                }
                fused(QUICK_GELU, &[self.quick_gelu(node)?], ("", 0.0))
            }
            "MatMul" => {
                let (q, k, factor) = self.scores(node.input(0))?;
                fused(ATTENTION, &[q, k, node.input(1)], ("factor", factor))
            }
            _ => None,
        }
    }

    /// `γ · (x − mean) / √(variance + ε)`: x, γ and ε.
    fn norm(&self, node: &'a Node) -> Option<(&'a str, &'a str, f32)> {
        self.either(node).into_iter().find_map(|(unit, gamma)| {
            self.constants.get(gamma)?.floats()?;
            let division = self.writer(unit, "Div")?;
            let centred = self.writer(division.input(0), "Sub")?;
            let x = centred.input(0);
            (self.mean(centred.input(1))? == x).then_some(())?;
            let floored = self.writer(self.writer(division.input(1), "Sqrt")?.input(0), "Add")?;
            let (variance, epsilon) = self.scaled(floored)?;
            let squares = self.mean(variance)?;
            (self.square(squares)? == division.input(0)).then_some((x, gamma, epsilon))
        })
    }

    /// What this is the mean of along the last dimension.
    fn mean(&self, name: &str) -> Option<&'a str> {
        let node = self.writer(name, "ReduceMean")?;
        let given = self.constants.get(node.input(1)).and_then(Constant::longs);
        let last = given.or_else(|| node.ints("axes")) == Some(&[-1]);
        (last && node.int("keepdims", 1) == 1).then(|| node.input(0))
    }

    fn square(&self, name: &str) -> Option<&'a str> {
        let node = self.writers.get(name)?;
        let of_itself = match node.op.as_str() {
            "Mul" => node.input(0) == node.input(1),
            "Pow" => self.scalar(node.input(1)) == Some(2.0),
            _ => false,
        };
        of_itself.then(|| node.input(0))
    }

    /// `x · ½ · (1 + erf(x / √2))`, in any order.
    fn gelu(&self, node: &'a Node) -> Option<&'a str> {
        let mut products = Vec::new();
        for (a, b) in self.either(node) {
            products.push((a, b, 1.0));
            if let Some(inner) = self.writer(a, "Mul") {
                let halved = self.scaled(inner).map(|(a, factor)| (a, b, factor));
                products.extend(halved);
            }
            if let (Some(inner), Some(factor)) = (self.writer(a, "Mul"), self.scalar(b)) {
                let turned = self.either(inner).map(|(a, b)| (a, b, factor));
                products.extend(turned);
            }
        }
        products.into_iter().find_map(|(x, share, factor)| {
            let (of, weight) = self.share(share)?;
            (of == x && near(weight * factor, 0.5)).then_some(x)
        })
    }

    /// `weight · (1 + erf(x / √2))`: x and the weight.
    fn share(&self, name: &str) -> Option<(&'a str, f32)> {
        let (rest, offset) = self.scaled(self.writer(name, "Add")?)?;
        let (erf, weight) = match self.writer(rest, "Mul") {
            Some(product) => self.scaled(product)?,
            None => (rest, 1.0),
        };
        let inner = self.writer(self.writer(erf, "Erf")?.input(0), "")?;
        let (x, factor) = self.scaled(inner)?;
        let factor = if inner.op == "Div" {
            1.0 / factor
        } else {
            factor
        };
        let fits = matches!(inner.op.as_str(), "Mul" | "Div")
            && near(factor, std::f32::consts::FRAC_1_SQRT_2)
            && near(weight, offset);
        fits.then_some((x, weight))
    }

    fn quick_gelu(&self, node: &'a Node) -> Option<&'a str> {
        self.either(node).into_iter().find_map(|(x, gate)| {
            let inner = self.writer(self.writer(gate, "Sigmoid")?.input(0), "Mul")?;
            let (of, factor) = self.scaled(inner)?;
            (of == x && near(factor, 1.702)).then_some(x)
        })
    }

    /// `softmax(factor · q · k)`: q, k and the factor.
    fn scores(&self, name: &str) -> Option<(&'a str, &'a str, f32)> {
        let softmax = self.writer(name, "Softmax")?;
        matches!(softmax.int("axis", -1), -1 | 3).then_some(())?;
        let inner = self.writer(softmax.input(0), "")?;
        let (products, factor) = match inner.op.as_str() {
            "Mul" => self.scaled(inner)?,
            "Div" => self.scaled(inner).map(|(x, factor)| (x, 1.0 / factor))?,
            _ => (softmax.input(0), 1.0),
        };
        let products = self.writer(products, "MatMul")?;
        let fits = factor.is_finite() && factor > 0.0;
        fits.then(|| (products.input(0), products.input(1), factor))
    }

    /// A value and the constant number that `node` joins it with; the second
    /// input of a division.
    fn scaled(&self, node: &'a Node) -> Option<(&'a str, f32)> {
        let [first, second] = self.either(node);
        let pairs = [Some(first), (node.op != "Div").then_some(second)];
        let scaled = |(x, factor)| Some((x, self.scalar(factor)?));
        pairs.into_iter().flatten().find_map(scaled)
    }

    /// Both inputs in both orders.
    fn either(&self, node: &'a Node) -> [(&'a str, &'a str); 2] {
        let (a, b) = (node.input(0), node.input(1));
        [(a, b), (b, a)]
    }

    /// The node that writes this, if it does `op` or `op` is empty.
    fn writer(&self, name: &str, op: &str) -> Option<&'a Node> {
        let node = *self.writers.get(name)?;
        (op.is_empty() || node.op == op).then_some(node)
    }

    fn scalar(&self, name: &str) -> Option<f32> {
        match self.constants.get(name)?.floats()? {
            [value] => Some(*value),
            _ => None,
        }
    }
}

fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}
