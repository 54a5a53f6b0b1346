"""The other sides, each as its documentation says."""
