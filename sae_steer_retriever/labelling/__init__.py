"""Labels for an SAE's features: keywords, language models, label scores and Neuron2Graph."""
