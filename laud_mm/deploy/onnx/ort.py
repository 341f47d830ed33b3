"""What onnxruntime made of a flat graph, with its branches put into `If`s."""
import tempfile
from pathlib import Path
import onnx
from onnx import helper, TensorProto


def optimised(model, threads=1, sizes=None):
    import onnxruntime as ort
    with tempfile.TemporaryDirectory() as folder:
        o = ort.SessionOptions()
        o.optimized_model_filepath = str(Path(folder, 'net.onnx'))
        o.intra_op_num_threads = threads
        o.log_severity_level = 3
        for k, v in (sizes or {}).items():
            o.add_free_dimension_override_by_name(k, v)
        ort.InferenceSession(model.SerializeToString(), o, providers=['CPUExecutionProvider'])
        return onnx.load(o.optimized_model_filepath)


def wrap(model, blocks):
    """blocks: {block name: mask output}"""
    g = model.graph
    nodes = list(g.node)
    producer = {out: i for i, n in enumerate(nodes) for out in n.output}
    consumers = {}
    for i, n in enumerate(nodes):
        for x in n.input:
            consumers.setdefault(x, []).append(i)
    initial = {t.name for t in g.initializer}
    outputs = {o.name for o in g.output}
    drop, insert = set(), {}
    for block, mask in blocks.items():
        own = {i for i, n in enumerate(nodes) if n.name.startswith(f'{block}.branch.')}
        # reorders between
        grow = True
        while grow:
            grow = False
            for i, n in enumerate(nodes):
                if i in own or not any(producer.get(x) in own for x in n.input): continue
                if any(c in own for o in n.output for c in consumers.get(o, [])):
                    own.add(i); grow = True
        outs = [o for i in own for o in nodes[i].output
                if o in outputs or any(c not in own for c in consumers.get(o, []))]
        assert len(outs) == 1, (block, outs)
        last = nodes[producer[outs[0]]]
        if len(last.input) == 4:
            other = last.input[3]
        else:
            add = nodes[producer[last.input[0]]]
            assert last.op_type == 'Relu' and add.op_type == 'Add', (last, add)
            other = next(x for x in add.input if producer.get(x) not in own)
        inner = [nodes[i] for i in sorted(own)]
        out = outs[0]
        renamed = out + '_on'
        inner_nodes = []
        for n in inner:
            m = onnx.NodeProto(); m.CopyFrom(n)
            m.output[:] = [renamed if o == out else o for o in n.output]
            m.input[:] = [renamed if o == out else o for o in n.input]
            inner_nodes.append(m)
        value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        yes = helper.make_graph(inner_nodes, f'{block}_on', [], [value(renamed)])
        down = f'{block}.shortcut'
        kind = 'Relu' if any(n.name.startswith(down) for n in nodes) else 'Identity'
        no = helper.make_graph([helper.make_node(kind, [other], [out + '_off'], name=f'{block}_off')],
                               f'{block}_no', [], [value(out + '_off')])
        node = helper.make_node('If', [mask], [out], name=f'{block}_if', then_branch=yes,
                                else_branch=no)
        drop |= own
        insert[producer[out]] = node
    new = [insert.get(i, n) for i, n in enumerate(nodes) if i not in drop or i in insert]
    # topological
    ready = initial | {i.name for i in g.input} | {''}
    order, rest = [], new
    def needs(n):
        names = set(n.input)
        for a in n.attribute:
            if a.HasField('g'):
                own = {o for k in a.g.node for o in k.output}
                names |= {x for k in a.g.node for x in k.input} - own
        return names
    wants = [(n, needs(n)) for n in rest]
    while wants:
        left = []
        for n, w in wants:
            if w <= ready:
                order.append(n); ready |= set(n.output)
            else:
                left.append((n, w))
        assert len(left) < len(wants)
        wants = left
    del g.node[:]
    g.node.extend(order)
    del g.value_info[:]
    return model
