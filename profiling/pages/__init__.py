"""The pages made from result files, one module each: `page(results)` returns a page's whole text."""
